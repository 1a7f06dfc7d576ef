"""One plain class for each deployment: loads, warms up, answers one or two verbs, tells whether it is well."""
