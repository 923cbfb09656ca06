"""The part of `thingbridge --help` that explains the settings."""

from typing import Any

from settings import describe


def write_settings(formatter: Any) -> None:
    """Write the description of every setting.

    Args:
        formatter: the formatter of the help, which wraps lines at the width of the terminal.
    """
    with formatter.section("Settings"):
        formatter.write_text(
            "Environment variables, or lines of the TOML file that IOT_AWS_CONFIG_FILE names: "
            "IOT_AWS_SHADOW__POLL_BATCH_SIZE is there poll_batch_size under [shadow]. "
            "The environment overrides the file."
        )
        for title, section in describe():
            formatter.write_paragraph()
            formatter.write_text(title)
            for variable, default, allowed in section:
                with formatter.indentation():
                    formatter.write_text(variable)
                    with formatter.indentation():
                        value = "[required]" if default is None else f"[default: {default}]"
                        formatter.write_text(f"{allowed} {value}")
        formatter.write_paragraph()
        formatter.write_text(
            "Temporal and AWS are configured as for their own tools: TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE, "
            "TEMPORAL_API_KEY, …; AWS_REGION, AWS_PROFILE, AWS_ENDPOINT_URL, …"
        )
