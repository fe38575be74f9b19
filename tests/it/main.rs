//! Host integration tests.

mod advisories;
mod console;
mod cycle;
mod fairness;
mod host;
mod hostile;
mod hotplug;
mod journal;
mod left;
mod life;
mod many;
mod oracles;
mod recovery;
mod rogue;
mod shapes;
mod source;
mod statistics;
mod storms;
mod surface;
mod tidy;
mod toy;
mod volumes;
