"""Both HTTP services, held against openapi.json by schemathesis: `make api`."""
