"""What is rendered from the types of the wire: JSON Schemas, and the OpenAPI document.

May import: `contracts`, `contracts.journal`, `contracts.records`, `contracts.messages`, `contracts.triggers`,
`contracts.api`.
"""
