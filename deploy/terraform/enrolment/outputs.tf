output "template_name" {
  description = "Name of the provisioning template, for the devices."
  value       = aws_iot_provisioning_template.this.name
}

output "claim_policy_name" {
  description = "Name of the IoT policy of the claim certificates."
  value       = aws_iot_policy.claim.name
}

output "claim_client_id_prefix" {
  description = "Prefix of the client ids of claim certificates."
  value       = local.claim_client_id_prefix
}

output "dead_letter_queue_url" {
  description = "URL of the queue of registrations that failed after all retries."
  value       = aws_sqs_queue.dead_letters.url
}
