//! Other engines: what is said to them, how rails towards them are joined, and what is lent.

mod joint;
mod loans;

pub(crate) mod message;
#[cfg(test)]
mod tests;
