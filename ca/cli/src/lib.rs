//! Admin verbs over the admin API: tables for people, JSON for programs.
