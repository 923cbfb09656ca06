variable "name" {
  description = "Name, or prefix of the names, of the roles, functions and templates."
  type        = string
  default     = "thingbridge"

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{1,20}$", var.name))
    error_message = "The name must have 1 to 20 letters, digits, _ or -."
  }
}

variable "device_policy_name" {
  description = "IoT policy of every device: the setting IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME."
  type        = string
  default     = "thingbridge-device"
}

variable "thing_type_name" {
  description = "Thing type of devices that enrol themselves. AWS allows only 3 attributes on a Thing without a type."
  type        = string
  default     = "thingbridge-device"
}

variable "secret_name_template" {
  description = "The setting IOT_AWS_PROVISIONING__SECRET_NAME_TEMPLATE."
  type        = string
  default     = "iot/devices/{thingName}/key"

  validation {
    condition     = strcontains(var.secret_name_template, "{thingName}")
    error_message = "The template must contain {thingName}."
  }
}

variable "secret_kms_key_arn" {
  description = "KMS key of the setting IOT_AWS_PROVISIONING__SECRET_KMS_KEY_ID; null for the default key of the account."
  type        = string
  default     = null
}

variable "job_id_prefix" {
  description = "The setting IOT_AWS_JOBS__JOB_ID_PREFIX."
  type        = string
  default     = "granit"
}

variable "command_thing_groups" {
  description = "Names of the Thing groups that can be the target of a command. * matches any characters."
  type        = list(string)
  default     = ["*"]
}

variable "fleet_credential_secret_arn" {
  description = "The setting IOT_AWS_CREDENTIALS__FLEET_CREDENTIAL_SECRET_ARN; null if it is not set."
  type        = string
  default     = null
}

variable "event_bus_arn" {
  description = "EventBridge bus for the events of the bridge; null if the sink is not EventBridge."
  type        = string
  default     = null
}

variable "event_topic_arn" {
  description = "SNS topic for the events of the bridge; null if the sink is not SNS."
  type        = string
  default     = null
}

variable "cluster_oidc_provider_arn" {
  description = "IAM OIDC provider of the EKS cluster that runs the workers (IRSA); null if there is none."
  type        = string
  default     = null
}

variable "service_accounts" {
  description = "NAMESPACE:NAME of the workers' service accounts in that cluster."
  type        = list(string)
  default     = ["thingbridge:thingbridge-worker"]
}

variable "trusted_services" {
  description = "AWS services that may assume the role, such as ecs-tasks.amazonaws.com or ec2.amazonaws.com."
  type        = list(string)
  default     = []
}

variable "enrolments" {
  description = <<-EOT
    One entry for each tenant whose devices enrol themselves. The key is a name for its template and functions.
    tenant_id is the UUID of the tenant, or the zero UUID for devices without a tenant. api_key_secret_arn is the
    secret whose text is the API key of the tenant (`thingbridge keys create`).
  EOT
  type = map(object({
    tenant_id          = string
    api_key_secret_arn = string
  }))
  default = {}

  validation {
    condition     = alltrue([for name in keys(var.enrolments) : can(regex("^[A-Za-z0-9_-]{1,15}$", name))])
    error_message = "Each name must have 1 to 15 letters, digits, _ or -."
  }
}

variable "api_url" {
  description = "URL of the bridge's API for the functions, https://…; required with enrolments."
  type        = string
  default     = null

  validation {
    condition     = var.api_url == null || can(regex("^https://", coalesce(var.api_url, "-")))
    error_message = "The URL must begin with https://, because requests contain a key."
  }
}

variable "api_key_kms_key_arn" {
  description = "KMS key of the secrets with the API keys; null for the default key of the account."
  type        = string
  default     = null
}

variable "enable_thing_events" {
  description = "Whether to enable the registry events of Things, which enrolments need. Set to false if they are already enabled."
  type        = bool
  default     = true
}

variable "function_subnet_ids" {
  description = "Subnets of the functions; empty if they call the API over the internet."
  type        = list(string)
  default     = []
}

variable "function_security_group_ids" {
  description = "Security groups of the functions in these subnets."
  type        = list(string)
  default     = []
}

variable "log_retention_days" {
  description = "Retention of the functions' logs in days. The logs contain Thing names, and so serial numbers."
  type        = number
  default     = 30
}
