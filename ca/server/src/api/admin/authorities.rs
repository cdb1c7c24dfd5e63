//! Authorities: listed, and rotated by hand.
