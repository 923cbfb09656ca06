# The permissions of a device: connect as its own Thing, and use the shadows and jobs of that Thing. The Thing name
# begins with the tenant, and a certificate is attached to one Thing, so a tenant cannot access devices of another.
# `&{…}` is the Terraform form of `${…}`, which AWS IoT replaces for each connection.
data "aws_iam_policy_document" "device" {
  statement {
    sid       = "ConnectAsItself"
    actions   = ["iot:Connect"]
    resources = ["${local.iot}:client/&{iot:Connection.Thing.ThingName}"]

    condition {
      test     = "Bool"
      variable = "iot:Connection.Thing.IsAttached"
      values   = ["true"]
    }
  }

  statement {
    sid     = "Publish"
    actions = ["iot:Publish"]
    resources = [
      "${local.iot}:topic/$aws/things/&{iot:Connection.Thing.ThingName}/shadow/get",
      "${local.iot}:topic/$aws/things/&{iot:Connection.Thing.ThingName}/shadow/update",
      "${local.iot}:topic/$aws/things/&{iot:Connection.Thing.ThingName}/shadow/name/*/get",
      "${local.iot}:topic/$aws/things/&{iot:Connection.Thing.ThingName}/shadow/name/*/update",
      "${local.iot}:topic/$aws/things/&{iot:Connection.Thing.ThingName}/jobs/get",
      "${local.iot}:topic/$aws/things/&{iot:Connection.Thing.ThingName}/jobs/start-next",
      "${local.iot}:topic/$aws/things/&{iot:Connection.Thing.ThingName}/jobs/*/get",
      "${local.iot}:topic/$aws/things/&{iot:Connection.Thing.ThingName}/jobs/*/update",
    ]
  }

  statement {
    sid     = "Subscribe"
    actions = ["iot:Subscribe"]
    resources = [
      "${local.iot}:topicfilter/$aws/things/&{iot:Connection.Thing.ThingName}/shadow/*",
      "${local.iot}:topicfilter/$aws/things/&{iot:Connection.Thing.ThingName}/jobs/*",
    ]
  }

  statement {
    sid     = "Receive"
    actions = ["iot:Receive"]
    resources = [
      "${local.iot}:topic/$aws/things/&{iot:Connection.Thing.ThingName}/shadow/*",
      "${local.iot}:topic/$aws/things/&{iot:Connection.Thing.ThingName}/jobs/*",
    ]
  }
}

resource "aws_iot_policy" "device" {
  name   = var.device_policy_name
  policy = data.aws_iam_policy_document.device.json
}
