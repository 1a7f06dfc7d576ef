"""The native API, `/v2`: one spelling each, strict, and errors that name every field at fault."""
