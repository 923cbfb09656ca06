variable "name" {
  description = "What the roles, functions and templates are called, or begin with."
  type        = string
  default     = "thingbridge"

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{1,20}$", var.name))
    error_message = "1 to 20 of letters, digits, _ and -."
  }
}

variable "device_policy_name" {
  description = "The IoT policy of every device: the bridge's IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME."
  type        = string
  default     = "thingbridge-device"
}

variable "thing_type_name" {
  description = "The Thing type of devices that enrol themselves; AWS allows a Thing without one 3 attributes."
  type        = string
  default     = "thingbridge-device"
}

variable "secret_name_template" {
  description = "The bridge's IOT_AWS_PROVISIONING__SECRET_NAME_TEMPLATE."
  type        = string
  default     = "iot/devices/{thingName}/key"

  validation {
    condition     = strcontains(var.secret_name_template, "{thingName}")
    error_message = "It must hold {thingName}."
  }
}

variable "secret_kms_key_arn" {
  description = "The key of the bridge's IOT_AWS_PROVISIONING__SECRET_KMS_KEY_ID; null: the account's own."
  type        = string
  default     = null
}

variable "job_id_prefix" {
  description = "The bridge's IOT_AWS_JOBS__JOB_ID_PREFIX."
  type        = string
  default     = "granit"
}

variable "command_thing_groups" {
  description = "Names of the thing groups that may be sent commands, with * for any letters."
  type        = list(string)
  default     = ["*"]
}

variable "fleet_credential_secret_arn" {
  description = "The bridge's IOT_AWS_CREDENTIALS__FLEET_CREDENTIAL_SECRET_ARN; null: it has none."
  type        = string
  default     = null
}

variable "event_bus_arn" {
  description = "The EventBridge bus that the bridge's events go to; null: they go elsewhere."
  type        = string
  default     = null
}

variable "event_topic_arn" {
  description = "The SNS topic that the bridge's events go to; null: they go elsewhere."
  type        = string
  default     = null
}

variable "cluster_oidc_provider_arn" {
  description = "The IAM OIDC provider of the EKS cluster whose pods are the bridge (IRSA); null: none."
  type        = string
  default     = null
}

variable "service_accounts" {
  description = "NAMESPACE:NAME of the workers' service accounts in that cluster."
  type        = list(string)
  default     = ["thingbridge:thingbridge-worker"]
}

variable "trusted_services" {
  description = "AWS services that run the bridge as its role, as ecs-tasks.amazonaws.com or ec2.amazonaws.com."
  type        = list(string)
  default     = []
}

variable "enrolments" {
  description = <<-EOT
    Devices that enrol themselves, one entry for each tenant, by a name for its template and functions.
    tenant_id is that tenant's UUID, of zeros where there is none; api_key_secret_arn the secret whose text is
    the tenant's key (`thingbridge keys create`).
  EOT
  type = map(object({
    tenant_id          = string
    api_key_secret_arn = string
  }))
  default = {}

  validation {
    condition     = alltrue([for name in keys(var.enrolments) : can(regex("^[A-Za-z0-9_-]{1,15}$", name))])
    error_message = "A name is 1 to 15 of letters, digits, _ and -."
  }
}

variable "api_url" {
  description = "The bridge's API as the functions call it, https://…; needed with enrolments."
  type        = string
  default     = null

  validation {
    condition     = var.api_url == null || can(regex("^https://", coalesce(var.api_url, "-")))
    error_message = "It must begin with https://, since calls carry a key."
  }
}

variable "api_key_kms_key_arn" {
  description = "The key that the API keys' secrets are encrypted with; null: the account's own."
  type        = string
  default     = null
}

variable "enable_thing_events" {
  description = "Whether to have the registry tell of Things, which enrolments need; false where it does already."
  type        = bool
  default     = true
}

variable "function_subnet_ids" {
  description = "Subnets from which the functions reach the API; none: the internet."
  type        = list(string)
  default     = []
}

variable "function_security_group_ids" {
  description = "Security groups of the functions in those subnets."
  type        = list(string)
  default     = []
}

variable "log_retention_days" {
  description = "Days that the functions' logs are kept; Thing names in them hold serial numbers."
  type        = number
  default     = 30
}
