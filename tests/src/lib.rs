//! Stories, judges and measurements: end to end, interoperability, simulation, benchmarks, tidy.
