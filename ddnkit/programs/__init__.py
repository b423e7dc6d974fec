"""Programs: the functions of a node as the operations that they take, traced once and run again."""
