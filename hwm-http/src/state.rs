//! What all handlers share.

use std::net::IpAddr;
use std::sync::Arc;

use hwm_core::manager::Manager;
use tokio::sync::Semaphore;

use crate::idempotency::InFlight;
use crate::metrics::HttpMetrics;
use crate::options::Options;
use crate::ratelimit::Limiter;
use crate::tickets::Tickets;

/// Upgraded connections that may wait for their first message at once.
const WAITING_ROOM: usize = 256;

pub(crate) type Shared = Arc<Api>;

pub(crate) struct Api {
    pub(crate) manager: Manager,
    pub(crate) options: Options,
    /// By organization and subject.
    pub(crate) callers: Option<Limiter<(String, String)>>,
    pub(crate) addresses: Option<Limiter<IpAddr>>,
    pub(crate) tickets: Tickets,
    pub(crate) metrics: HttpMetrics,
    pub(crate) in_flight: InFlight,
    /// Bounds connections that were upgraded and have not said who they are.
    pub(crate) waiting_room: Arc<Semaphore>,
}

impl Api {
    pub(crate) fn new(manager: Manager, options: Options) -> Shared {
        Arc::new(Self {
            callers: options.caller_rate.map(Limiter::new),
            addresses: options.address_rate.map(Limiter::new),
            tickets: Tickets::new(options.environment.clone()),
            metrics: HttpMetrics::new(),
            in_flight: InFlight::default(),
            waiting_room: Arc::new(Semaphore::new(WAITING_ROOM)),
            manager,
            options,
        })
    }
}
