//! What could be seen, as it is told.

use super::Correlator;
use crate::model::{
    coverage::{Coverage, Sensor, Sight},
    time::{At, Moment},
};

/// Sensors that came to see better, remembered before the oldest are forgotten.
const DIMMER: usize = 1_024;

impl Correlator {
    /// How well each sensor saw from then until now: what it did not see at first it has not seen.
    pub(super) fn sights(&self, from: Moment) -> Vec<(Sensor, Sight, Option<String>)> {
        let of = |sensor: &Sensor| {
            let (mut sight, mut why) = self.sensors.get(sensor).cloned().unwrap_or((Sight::Off, None));
            for (until, other, before, reason) in &self.dimmer {
                if other == sensor && *until > from && *before > sight {
                    (sight, why) = (*before, reason.clone());
                }
            }
            (*sensor, sight, why)
        };
        Sensor::ALL.iter().map(of).collect()
    }

    pub(super) fn coverage(&mut self, at: At, coverage: &Coverage) {
        match coverage {
            Coverage::Sensor { sensor, sight, why } => {
                let before = self.sensors.insert(*sensor, (*sight, why.clone()));
                if let Some((dimmer, why)) = before.filter(|(before, _)| before > sight) {
                    if self.dimmer.len() >= DIMMER {
                        self.dimmer.pop_front();
                    }
                    self.dimmer.push_back((at.latest, *sensor, dimmer, why));
                }
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
