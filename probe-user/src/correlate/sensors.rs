//! What could be seen, as it is told.

use super::Correlator;
use crate::model::{
    coverage::{Coverage, Sensor, Sight},
    time::At,
};

impl Correlator {
    pub(super) fn coverage(&mut self, at: At, coverage: &Coverage) {
        match coverage {
            Coverage::Sensor { sensor, sight, why } => {
                self.sensors.insert(*sensor, (*sight, why.clone()));
                self.wires.with_log = self.sight(Sensor::ErrorLog) == Sight::On;
                self.flows.hear_complaints(self.sight(Sensor::NginxFunctions) == Sight::On);
                self.flows.hear_states(self.sight(Sensor::SocketStates) != Sight::Degraded);
            }
            Coverage::Lost { sensor, count, why } => {
                self.losses_told += 1;
                self.losses.push_back((at, *sensor, *count, why.clone()));
            }
        }
    }
}
