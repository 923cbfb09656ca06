# The two functions of deploy/lambda: the hook, which allows a device and sets its Thing name, and the registration,
# which registers the Thing with the bridge.
data "archive_file" "functions" {
  type        = "zip"
  output_path = "${path.root}/.terraform/thingbridge-lambda.zip"

  dynamic "source" {
    for_each = fileset("${path.module}/../../lambda", "*.py")

    content {
      filename = source.value
      content  = file("${path.module}/../../lambda/${source.value}")
    }
  }
}

locals {
  functions = {
    # AWS waits 5 s for a hook, including its start. More memory makes the start faster.
    hook         = { handler = "pre_provisioning_hook.handler", timeout = 5, memory = 512 }
    registration = { handler = "registration.handler", timeout = 60, memory = 256 }
  }
}

resource "aws_lambda_function" "this" {
  for_each = local.functions

  function_name    = "${var.name}-${each.key}"
  role             = aws_iam_role.function[each.key].arn
  runtime          = "python3.13"
  architectures    = ["arm64"]
  handler          = each.value.handler
  timeout          = each.value.timeout
  memory_size      = each.value.memory
  filename         = data.archive_file.functions.output_path
  source_code_hash = data.archive_file.functions.output_base64sha256

  environment {
    variables = {
      THINGBRIDGE_URL        = var.api_url
      THINGBRIDGE_KEY_SECRET = var.api_key_secret_arn
      THINGBRIDGE_TENANT_ID  = var.tenant_id
    }
  }

  vpc_config {
    subnet_ids         = var.function_subnet_ids
    security_group_ids = var.function_security_group_ids
  }

  depends_on = [
    aws_cloudwatch_log_group.function,
    aws_iam_role_policy.function,
  ]

  lifecycle {
    precondition {
      condition     = var.api_url != null
      error_message = "Enrolments need api_url."
    }
  }
}

resource "aws_cloudwatch_log_group" "function" {
  for_each = local.functions

  name              = "/aws/lambda/${var.name}-${each.key}"
  retention_in_days = var.log_retention_days
}

resource "aws_iam_role" "function" {
  for_each = local.functions

  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.function_trust.json
}

data "aws_iam_policy_document" "function_trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["lambda.amazonaws.com"]
    }
  }
}

resource "aws_iam_role_policy" "function" {
  for_each = local.functions

  name = each.key
  role = aws_iam_role.function[each.key].id
  policy = {
    hook         = data.aws_iam_policy_document.hook.json
    registration = data.aws_iam_policy_document.registration.json
  }[each.key]
}

data "aws_iam_policy_document" "hook" {
  source_policy_documents = [data.aws_iam_policy_document.both.json]

  statement {
    sid = "Log"
    actions = [
      "logs:CreateLogStream",
      "logs:PutLogEvents",
    ]
    resources = ["${aws_cloudwatch_log_group.function["hook"].arn}:*"]
  }
}

data "aws_iam_policy_document" "registration" {
  source_policy_documents = [data.aws_iam_policy_document.both.json]

  statement {
    sid = "Log"
    actions = [
      "logs:CreateLogStream",
      "logs:PutLogEvents",
    ]
    resources = ["${aws_cloudwatch_log_group.function["registration"].arn}:*"]
  }

  statement {
    sid = "Things"
    actions = [
      "iot:DescribeThing",
      "iot:ListThingPrincipals",
    ]
    resources = ["${local.iot}:thing/${local.thing_prefix}*"]
  }

  # To read the expiry of the claim certificate.
  statement {
    sid       = "ClaimCertificates"
    actions   = ["iot:DescribeCertificate"]
    resources = ["${local.iot}:cert/*"]
  }

  statement {
    sid       = "DeadLetters"
    actions   = ["sqs:SendMessage"]
    resources = [aws_sqs_queue.dead_letters.arn]
  }
}

data "aws_iam_policy_document" "both" {
  statement {
    sid       = "ApiKey"
    actions   = ["secretsmanager:GetSecretValue"]
    resources = [var.api_key_secret_arn]
  }

  dynamic "statement" {
    for_each = var.api_key_kms_key_arn[*]

    content {
      sid       = "KeyOfApiKey"
      actions   = ["kms:Decrypt"]
      resources = [statement.value]
    }
  }

  # Lambda itself needs these actions in a VPC. AWS supports no resource for them.
  dynamic "statement" {
    for_each = length(var.function_subnet_ids) > 0 ? ["network"] : []

    content {
      sid = "Network"
      actions = [
        "ec2:CreateNetworkInterface",
        "ec2:DeleteNetworkInterface",
        "ec2:DescribeNetworkInterfaces",
      ]
      resources = ["*"]
    }
  }
}

resource "aws_lambda_permission" "hook" {
  statement_id   = "provisioning-template"
  action         = "lambda:InvokeFunction"
  function_name  = aws_lambda_function.this["hook"].function_name
  principal      = "iot.amazonaws.com"
  source_account = local.account
  source_arn     = "${local.iot}:provisioningtemplate/${var.name}"
}

resource "aws_lambda_permission" "registration" {
  statement_id   = "registry-events"
  action         = "lambda:InvokeFunction"
  function_name  = aws_lambda_function.this["registration"].function_name
  principal      = "iot.amazonaws.com"
  source_account = local.account
  source_arn     = aws_iot_topic_rule.registration.arn
}

# The registry events of this tenant's Things, without the Things that the bridge created.
resource "aws_iot_topic_rule" "registration" {
  name        = "${replace(var.name, "-", "_")}_registration"
  enabled     = true
  sql_version = "2016-03-23"
  sql         = <<-SQL
    SELECT * FROM '$aws/events/thing/+/+'
    WHERE (operation = 'CREATED' OR operation = 'UPDATED')
      AND regexp_matches(thingName, '^${local.thing_prefix}')
      AND isUndefined(attributes.deviceId)
  SQL

  lambda {
    function_arn = aws_lambda_function.this["registration"].arn
  }
}

resource "aws_lambda_function_event_invoke_config" "registration" {
  function_name          = aws_lambda_function.this["registration"].function_name
  maximum_retry_attempts = 2

  destination_config {
    on_failure {
      destination = aws_sqs_queue.dead_letters.arn
    }
  }
}

# Registrations that failed after all retries. Such a device is registered when it enrols again.
resource "aws_sqs_queue" "dead_letters" {
  name                      = "${var.name}-registration-failed"
  message_retention_seconds = 1209600
  sqs_managed_sse_enabled   = true
}
