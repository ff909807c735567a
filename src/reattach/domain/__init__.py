"""The terms of the domain: values, rules, errors and limits, without I/O."""
