//! Queue pairs: the one piece between the engine and every provider of verbs.

pub mod provider;
