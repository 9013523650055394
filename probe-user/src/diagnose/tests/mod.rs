//! Laws of the judgement.

mod laws;
