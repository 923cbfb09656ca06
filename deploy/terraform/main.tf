data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  account   = data.aws_caller_identity.current.account_id
  partition = data.aws_partition.current.partition
  region    = data.aws_region.current.id
  iot       = "arn:${local.partition}:iot:${local.region}:${local.account}"

  # t, the 32 hex digits of the tenant, -, the serial number: only Things with names of the bridge match.
  thing_names = "t????????????????????????????????-*"
  things      = "${local.iot}:thing/${local.thing_names}"
  # Secrets Manager appends a - and six random characters to each ARN.
  device_secrets = join("", [
    "arn:${local.partition}:secretsmanager:${local.region}:${local.account}:secret:",
    replace(var.secret_name_template, "{thingName}", local.thing_names),
    "-??????",
  ])
  jobs           = "${local.iot}:job/${var.job_id_prefix}-*"
  certificates   = "${local.iot}:cert/*"
  command_groups = [for name in var.command_thing_groups : "${local.iot}:thinggroup/${name}"]
  # The groups that the bridge creates for a command to a query.
  dynamic_groups = "${local.iot}:thinggroup/${var.job_id_prefix}-dynamic-*"
}

module "enrolment" {
  source   = "./enrolment"
  for_each = var.enrolments

  name                        = "${var.name}-${each.key}"
  tenant_id                   = each.value.tenant_id
  api_key_secret_arn          = each.value.api_key_secret_arn
  api_key_kms_key_arn         = var.api_key_kms_key_arn
  api_url                     = var.api_url
  device_policy_name          = aws_iot_policy.device.name
  thing_type_name             = one(aws_iot_thing_type.device[*].name)
  function_subnet_ids         = var.function_subnet_ids
  function_security_group_ids = var.function_security_group_ids
  log_retention_days          = var.log_retention_days
}

# A Thing without a type can have only 3 attributes, and devices that enrol themselves have more.
resource "aws_iot_thing_type" "device" {
  count = length(var.enrolments) > 0 ? 1 : 0

  name = var.thing_type_name
}

# One per account and region. Kinds of events that are not listed here are not changed.
resource "aws_iot_event_configurations" "things" {
  count = length(var.enrolments) > 0 && var.enable_thing_events ? 1 : 0

  event_configurations = { THING = true }
}
