//! Exchanges that go well: every mode, dialect, size and API, with the text compared to one undivided engine's.

mod bodies;
mod browsers;
mod credentials;
mod ends;
mod fields;
mod legs;
mod messages;
mod order;
mod redirects;
mod refused;
mod texts;
mod transfer;
mod usage;
