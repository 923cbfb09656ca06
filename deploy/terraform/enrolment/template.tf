data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  account   = data.aws_caller_identity.current.account_id
  partition = data.aws_partition.current.partition
  iot       = "arn:${local.partition}:iot:${data.aws_region.current.id}:${local.account}"

  # The prefix of the Thing names of this tenant.
  thing_prefix = "t${replace(var.tenant_id, "-", "")}-"
  # No Thing name begins so: a claim certificate cannot connect with the client id of a device.
  claim_client_id_prefix = "claim-${var.name}-"
}

resource "aws_iot_provisioning_template" "this" {
  name                  = var.name
  description           = "Devices of tenant ${var.tenant_id} that enrol themselves with thingbridge"
  enabled               = true
  provisioning_role_arn = aws_iam_role.provisioning.arn
  template_body = templatefile("${path.module}/provisioning-template.json.tftpl", {
    device_policy_name = var.device_policy_name
    thing_type_name    = var.thing_type_name
  })

  pre_provisioning_hook {
    payload_version = "2020-04-01"
    target_arn      = aws_lambda_function.this["hook"].arn
  }
}

# The role of fleet provisioning, with the policy that AWS manages for it.
resource "aws_iam_role" "provisioning" {
  name               = "${var.name}-provisioning"
  assume_role_policy = data.aws_iam_policy_document.provisioning_trust.json
}

data "aws_iam_policy_document" "provisioning_trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["iot.amazonaws.com"]
    }
  }
}

resource "aws_iam_role_policy_attachment" "provisioning" {
  role       = aws_iam_role.provisioning.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/service-role/AWSIoTThingsRegistration"
}

# The permissions of a claim certificate: request a device certificate, and enrol with this template.
data "aws_iam_policy_document" "claim" {
  statement {
    sid       = "Connect"
    actions   = ["iot:Connect"]
    resources = ["${local.iot}:client/${local.claim_client_id_prefix}*"]
  }

  statement {
    sid = "Enrol"
    actions = [
      "iot:Publish",
      "iot:Receive",
    ]
    resources = [
      "${local.iot}:topic/$aws/certificates/create/*",
      "${local.iot}:topic/$aws/certificates/create-from-csr/*",
      "${local.iot}:topic/$aws/provisioning-templates/${var.name}/provision/*",
    ]
  }

  statement {
    sid     = "Subscribe"
    actions = ["iot:Subscribe"]
    resources = [
      "${local.iot}:topicfilter/$aws/certificates/create/*",
      "${local.iot}:topicfilter/$aws/certificates/create-from-csr/*",
      "${local.iot}:topicfilter/$aws/provisioning-templates/${var.name}/provision/*",
    ]
  }
}

resource "aws_iot_policy" "claim" {
  name   = "${var.name}-claim"
  policy = data.aws_iam_policy_document.claim.json
}
