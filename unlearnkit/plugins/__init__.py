"""The plugin system: hook specifications, discovery of entry points, the manager, and the plugin template."""
