"""AWS services: plain classes around boto3, without Temporal and without the database."""
