//! Laws of the judgement, and what several causes say together.

mod laws;
mod standstill;
mod translated;
mod unix;
