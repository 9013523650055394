//! Laws of the judgement, and what several causes say together.

mod laws;
mod translated;
mod unix;
