"""The command `migrate`."""


def migrate() -> None:
    """Migrate the database, and register search attributes.

    The database then has this version's schema, and Temporal's namespace the
    search attributes of the workflows. It may be run again at any time, and
    changes nothing that is there already. Needs DATABASE_URL.
    """
    import asyncio

    from settings import DatabaseSettings

    settings = DatabaseSettings.load()

    from cli.output import standard_output
    from db.engine import open_engine
    from db.migrate import upgrade
    from observability import telemetry
    from orchestration.client import connect
    from orchestration.search_attributes import register_search_attributes

    async def register() -> None:
        client = await connect(settings.encryption.decoded_keys)
        added = await register_search_attributes(client)
        result = f"registered {', '.join(added)}" if added else "all search attributes are registered"
        console.print(f"namespace {client.namespace}: {result}")

    telemetry.configure("WARNING", settings.log.format)
    console = standard_output()
    engine = open_engine(settings.database_url.get_secret_value())
    try:
        console.print(f"database: schema {upgrade(engine)}")
    finally:
        engine.dispose()
    asyncio.run(register())
