#!/bin/sh
# Run once by the postgres image, on an empty volume. The databases of Temporal and of the bridge are separate: the
# bridge uses its own role, which owns one database and cannot connect to any other.
set -e
psql --set ON_ERROR_STOP=1 --set password="$THINGBRIDGE_DB_PASSWORD" \
    --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
CREATE DATABASE temporal_visibility;
REVOKE CONNECT ON DATABASE temporal, temporal_visibility, postgres FROM PUBLIC;
CREATE ROLE thingbridge LOGIN PASSWORD :'password';
CREATE DATABASE thingbridge OWNER thingbridge;
REVOKE CONNECT ON DATABASE thingbridge FROM PUBLIC;
SQL
