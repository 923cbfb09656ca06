variable "name" {
  description = "The template's name, and what those of its functions, roles, queue and rule begin with."
  type        = string
}

variable "tenant_id" {
  description = "The tenant whose devices enrol here, a UUID in lower case; of zeros where there is none."
  type        = string

  validation {
    condition     = can(regex("^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", var.tenant_id))
    error_message = "It must be a UUID in lower case."
  }
}

variable "api_key_secret_arn" {
  description = "The secret whose text is the tenant's key of the bridge's API."
  type        = string
}

variable "api_key_kms_key_arn" {
  description = "The key that secret is encrypted with; null: the account's own."
  type        = string
}

variable "api_url" {
  description = "The bridge's API as the functions call it, https://…"
  type        = string
}

variable "device_policy_name" {
  description = "The IoT policy that every device gets."
  type        = string
}

variable "thing_type_name" {
  description = "The Thing type of devices that enrol themselves."
  type        = string
}

variable "function_subnet_ids" {
  description = "Subnets from which the functions reach the API; none: the internet."
  type        = list(string)
}

variable "function_security_group_ids" {
  description = "Security groups of the functions in those subnets."
  type        = list(string)
}

variable "log_retention_days" {
  description = "Days that the functions' logs are kept."
  type        = number
}
