//! Mistakes of a proxy and misbehaviour of engines: each must show.
