output "template_name" {
  description = "The template that a device names."
  value       = aws_iot_provisioning_template.this.name
}

output "claim_policy_name" {
  description = "The IoT policy of the claim certificates."
  value       = aws_iot_policy.claim.name
}

output "claim_client_id_prefix" {
  description = "What the client ids of connections with a claim certificate begin with."
  value       = local.claim_client_id_prefix
}

output "dead_letter_queue_url" {
  description = "The queue of registrations that failed for good."
  value       = aws_sqs_queue.dead_letters.url
}
