variable "name" {
  description = "Name of the template, and prefix of the names of its functions, roles, queue and rule."
  type        = string
}

variable "tenant_id" {
  description = "Tenant of the devices, a UUID in lower case; the zero UUID for devices without a tenant."
  type        = string

  validation {
    condition     = can(regex("^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", var.tenant_id))
    error_message = "The tenant must be a UUID in lower case."
  }
}

variable "api_key_secret_arn" {
  description = "Secret whose text is the API key of the tenant."
  type        = string
}

variable "api_key_kms_key_arn" {
  description = "KMS key of that secret; null for the default key of the account."
  type        = string
}

variable "api_url" {
  description = "URL of the bridge's API for the functions, https://…"
  type        = string
}

variable "device_policy_name" {
  description = "IoT policy attached to every device certificate."
  type        = string
}

variable "thing_type_name" {
  description = "Thing type of devices that enrol themselves."
  type        = string
}

variable "function_subnet_ids" {
  description = "Subnets of the functions; empty if they call the API over the internet."
  type        = list(string)
}

variable "function_security_group_ids" {
  description = "Security groups of the functions in these subnets."
  type        = list(string)
}

variable "log_retention_days" {
  description = "Retention of the functions' logs in days."
  type        = number
}
