data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  account   = data.aws_caller_identity.current.account_id
  partition = data.aws_partition.current.partition
  iot       = "arn:${local.partition}:iot:${data.aws_region.current.id}:${local.account}"

  # What the bridge's Thing names of this tenant begin with.
  thing_prefix = "t${replace(var.tenant_id, "-", "")}-"
  # No Thing's name begins so: a claim certificate cannot take a device's connection from it.
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

# AWS's own role for fleet provisioning: what it makes of the template is AWS's to say.
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

# What a claim certificate may do: ask for a certificate of the device's own, and for this template.
data "aws_iam_policy_document" "claim" {
  statement {
    sid       = "Connect"
    actions   = ["iot:Connect"]
    resources = ["${local.iot}:client/${local.claim_client_id_prefix}*"]
  }

  statement {
    sid = "Ask"
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
