//! What sources hand to the thread that thinks.

use std::sync::Arc;

use super::capture::batch::Batch;
use crate::{bundle::tape::Raw, decode::kernel::Names, model::time::Moment, pipeline::Arrival, redact::Redactor};

/// Records of the kernel's ring, as they came.
#[derive(Debug)]
pub struct Records {
    pub(super) names: Arc<Names>,
    pub(super) bytes: Vec<u8>,
    pub(super) lengths: Vec<usize>,
}

impl Records {
    /// None yet; to be read with these names.
    #[must_use]
    pub const fn new(names: Arc<Names>) -> Self {
        Self { names, bytes: Vec::new(), lengths: Vec::new() }
    }

    /// Adds a record, without what must not be kept.
    pub fn push(&mut self, record: &[u8], redactor: &Redactor) {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(record);
        self.lengths.push(record.len());
        if redactor.concerns_record(record)
            && let Some(copy) = self.bytes.get_mut(begin..)
        {
            redactor.record(copy);
        }
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }
}

/// Something a source delivers.
#[derive(Debug)]
pub enum Delivery {
    /// Events.
    Arrivals(Vec<Arrival>),
    /// Records of the kernel's ring.
    Records(Records),
    /// A line of a log, with what it was read from.
    Line(Box<(Arrival, Raw)>),
    /// Packets of a capture.
    Packets(Batch),
    /// No more will come; it was said then, when everything that had happened had been delivered but for the usual lag.
    End(Moment),
}

impl Delivery {
    /// What it holds, about, bytes.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Arrivals(arrivals) => arrivals.len() * size_of::<Arrival>(),
            Self::Records(records) => records.bytes.len() + records.lengths.len() * size_of::<usize>(),
            Self::Packets(batch) => batch.weight(),
            Self::Line(_) => size_of::<(Arrival, Raw)>() + 1024,
            Self::End(_) => 0,
        }
    }
}
