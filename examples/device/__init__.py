"""An example device of AWS IoT Core, on AWS's own device SDK: README.md beside this file describes it."""
