//! How the built-in server takes over connections from the predecessor. It checks whether it can
//! serve a connection, counts the connection, and starts its task.

use std::collections::HashMap;
use std::sync::Arc;

use super::connection::{ConnectionContext, ConnectionTask};
use super::listener::ListenerSlot;
use super::workers::least_loaded;
use crate::carry::{CarriedConnection, Declined, TakesOver};
use crate::service::Service;

/// The parts of the server that connections from the predecessor need.
pub(super) struct TakingOver<S> {
    pub(super) context: Arc<ConnectionContext<S>>,
    /// The listeners to which the predecessor may move its connections, by name.
    pub(super) slots: HashMap<String, Arc<ListenerSlot<S>>>,
}

/// A connection that this process can take over. It is served only after the answer has been sent
/// to the predecessor.
pub(super) struct PreparedConnection<S> {
    slot: Arc<ListenerSlot<S>>,
    worker: usize,
    task: ConnectionTask<S>,
}

impl<S: Service> TakesOver for TakingOver<S> {
    type Prepared = PreparedConnection<S>;

    fn prepare(&self, connection: CarriedConnection) -> Result<PreparedConnection<S>, Declined> {
        let head = &connection.head;
        let slot = self.slots.get(&head.listener).ok_or_else(|| connection.unknown_listener())?;
        self.context.service.accepts(&slot.name, &connection.saved_state)?;
        let permit = match &slot.limit {
            Some(limit) => {
                let full =
                    || format!("the listener {} has reached its connection limit", slot.name);
                Some(limit.acquire_for_carried(head.max_connections).ok_or_else(full)?)
            }
            None => None,
        };
        let worker = least_loaded(&slot.workers);
        let _within = slot.enter(worker);
        let (client, since, saved_state) = connection.into_stream()?;
        let task = slot.prepare(worker, client, since, permit, saved_state);
        Ok(PreparedConnection { slot: Arc::clone(slot), worker, task })
    }

    fn start(&self, PreparedConnection { slot, worker, task }: PreparedConnection<S>) {
        slot.start(worker, task);
    }

    fn release_reserved(&self) {
        self.slots
            .values()
            .filter_map(|slot| slot.limit.as_ref())
            .for_each(|limit| limit.release_reserved());
    }
}
