//! Nodes: listed, shown, banned, evicted.
