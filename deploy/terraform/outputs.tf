output "bridge_role_arn" {
  description = "The workers' role: `worker.roleArn` of the Helm chart."
  value       = aws_iam_role.bridge.arn
}

output "device_policy_name" {
  description = "The bridge's IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME."
  value       = aws_iot_policy.device.name
}

output "enrolments" {
  description = "For each enrolment, the template a device names, the policy of its claim certificates, and the beginning of the client ids they connect with."
  value = {
    for name, enrolment in module.enrolment : name => {
      template_name          = enrolment.template_name
      claim_policy_name      = enrolment.claim_policy_name
      claim_client_id_prefix = enrolment.claim_client_id_prefix
      dead_letter_queue_url  = enrolment.dead_letter_queue_url
    }
  }
}
