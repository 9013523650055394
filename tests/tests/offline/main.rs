//! Old captures: what others made, in whatever form, with the logs of their time; what they say, and what must not leave.

mod answers;
mod cut;
mod inputs;
mod labels;
mod logs;
mod scene;
mod secrets;
