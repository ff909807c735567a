"""Commands that copy, restore, export and delete data as a whole."""
