# The role of the workers, with exactly the actions that the code calls. The API and `migrate` need no role.
data "aws_iam_policy_document" "bridge" {
  statement {
    sid = "Things"
    actions = [
      "iot:CreateThing",
      "iot:DeleteThing",
      "iot:DeleteThingShadow",
      "iot:DescribeThing",
      "iot:GetThingShadow",
      "iot:ListJobExecutionsForThing",
      "iot:ListNamedShadowsForThing",
      "iot:ListThingPrincipals",
      "iot:UpdateThing",
      "iot:UpdateThingShadow",
    ]
    resources = [local.things]
  }

  statement {
    sid       = "Connections"
    actions   = ["iot:DeleteConnection"]
    resources = ["${local.iot}:client/${local.thing_names}"]
  }

  # AWS assigns certificate ids, and certificates have no tags: the bridge's cannot be distinguished from others.
  statement {
    sid = "Certificates"
    actions = [
      "iot:AttachPolicy",
      "iot:AttachThingPrincipal",
      "iot:DeleteCertificate",
      "iot:DetachPolicy",
      "iot:DetachThingPrincipal",
      "iot:ListPrincipalThings",
      "iot:UpdateCertificate",
    ]
    resources = [local.certificates]
  }

  statement {
    sid       = "DevicePolicy"
    actions   = ["iot:GetPolicy"]
    resources = [aws_iot_policy.device.arn]
  }

  statement {
    sid = "WithoutResources"
    actions = [
      "iot:CreateKeysAndCertificate",
      "iot:ListAttachedPolicies",
    ]
    resources = ["*"]
  }

  statement {
    sid = "Jobs"
    actions = [
      "iot:CancelJob",
      "iot:DeleteJob",
      "iot:DescribeJob",
      "iot:GetJobDocument",
    ]
    resources = [local.jobs]
  }

  statement {
    sid       = "JobsOfTargets"
    actions   = ["iot:CreateJob"]
    resources = concat([local.jobs, local.things, local.dynamic_groups], local.command_groups)
  }

  # A decommission deletes all job executions of the device, also those of jobs that the bridge did not create.
  statement {
    sid = "JobsOfThings"
    actions = [
      "iot:DeleteJobExecution",
      "iot:DescribeJobExecution",
    ]
    resources = ["${local.iot}:job/*", local.things]
  }

  statement {
    sid       = "ThingGroups"
    actions   = ["iot:DescribeThingGroup"]
    resources = concat([local.dynamic_groups], local.command_groups)
  }

  statement {
    sid = "GroupsOfQueries"
    actions = [
      "iot:CreateDynamicThingGroup",
      "iot:DeleteDynamicThingGroup",
    ]
    resources = [local.dynamic_groups]
  }

  # Create, describe and delete only: a key is never read back.
  statement {
    sid = "DeviceSecrets"
    actions = [
      "secretsmanager:CreateSecret",
      "secretsmanager:DeleteSecret",
      "secretsmanager:DescribeSecret",
      "secretsmanager:PutSecretValue",
      "secretsmanager:TagResource",
    ]
    resources = [local.device_secrets]
  }

  dynamic "statement" {
    for_each = var.secret_kms_key_arn[*]

    content {
      sid = "KeyOfDeviceSecrets"
      actions = [
        "kms:Decrypt",
        "kms:GenerateDataKey",
      ]
      resources = [statement.value]

      condition {
        test     = "StringEquals"
        variable = "kms:ViaService"
        values   = ["secretsmanager.${local.region}.${data.aws_partition.current.dns_suffix}"]
      }
    }
  }

  dynamic "statement" {
    for_each = var.fleet_credential_secret_arn[*]

    content {
      sid       = "FleetCredential"
      actions   = ["secretsmanager:GetSecretValue"]
      resources = [statement.value]
    }
  }

  dynamic "statement" {
    for_each = var.event_bus_arn[*]

    content {
      sid       = "EventBus"
      actions   = ["events:PutEvents"]
      resources = [statement.value]
    }
  }

  dynamic "statement" {
    for_each = var.event_topic_arn[*]

    content {
      sid       = "EventTopic"
      actions   = ["sns:Publish"]
      resources = [statement.value]
    }
  }
}

data "aws_iam_policy_document" "bridge_trust" {
  dynamic "statement" {
    for_each = var.cluster_oidc_provider_arn[*]

    content {
      sid     = "ServiceAccounts"
      actions = ["sts:AssumeRoleWithWebIdentity"]

      principals {
        type        = "Federated"
        identifiers = [statement.value]
      }

      condition {
        test     = "StringEquals"
        variable = "${local.oidc_issuer}:sub"
        values   = [for account in var.service_accounts : "system:serviceaccount:${account}"]
      }

      condition {
        test     = "StringEquals"
        variable = "${local.oidc_issuer}:aud"
        values   = ["sts.amazonaws.com"]
      }
    }
  }

  dynamic "statement" {
    for_each = length(var.trusted_services) > 0 ? [var.trusted_services] : []

    content {
      sid     = "Services"
      actions = ["sts:AssumeRole"]

      principals {
        type        = "Service"
        identifiers = statement.value
      }
    }
  }
}

locals {
  # The issuer at the end of arn:…:oidc-provider/oidc.eks.REGION.amazonaws.com/id/ID.
  oidc_issuer = try(split(":oidc-provider/", var.cluster_oidc_provider_arn)[1], "")
}

resource "aws_iam_role" "bridge" {
  name               = "${var.name}-bridge"
  assume_role_policy = data.aws_iam_policy_document.bridge_trust.json

  lifecycle {
    precondition {
      condition     = var.cluster_oidc_provider_arn != null || length(var.trusted_services) > 0
      error_message = "Set cluster_oidc_provider_arn or trusted_services: one of them must be able to assume the role."
    }
  }
}

resource "aws_iam_role_policy" "bridge" {
  name   = "bridge"
  role   = aws_iam_role.bridge.id
  policy = data.aws_iam_policy_document.bridge.json
}
