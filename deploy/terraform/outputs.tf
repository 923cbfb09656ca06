output "bridge_role_arn" {
  description = "ARN of the workers' role: `worker.roleArn` of the Helm chart."
  value       = aws_iam_role.bridge.arn
}

output "device_policy_name" {
  description = "Name of the device policy: the setting IOT_AWS_PROVISIONING__DEVICE_POLICY_NAME."
  value       = aws_iot_policy.device.name
}

output "enrolments" {
  description = "For each enrolment: the provisioning template, the policy of the claim certificates, the prefix of their client ids, and the dead-letter queue."
  value = {
    for name, enrolment in module.enrolment : name => {
      template_name          = enrolment.template_name
      claim_policy_name      = enrolment.claim_policy_name
      claim_client_id_prefix = enrolment.claim_client_id_prefix
      dead_letter_queue_url  = enrolment.dead_letter_queue_url
    }
  }
}
