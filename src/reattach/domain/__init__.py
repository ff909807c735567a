"""The words of the domain: values, rules and limits, without I/O."""
