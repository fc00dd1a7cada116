//! The executor, on virtual time; other threads are tested with the ring.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::Executor;
use crate::sim::SimPark;

fn executor() -> Executor {
    Executor::new(Box::new(SimPark::default()))
}

/// Sets a flag when it is dropped.
struct Flag(Rc<Cell<bool>>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

#[test]
fn tasks_run_in_the_order_they_became_ready() {
    let (executor, order) = (executor(), Rc::new(RefCell::new(Vec::new())));
    let local = executor.local();
    for n in 0..10 {
        let (order, inner) = (Rc::clone(&order), local.clone());
        drop(local.spawn(async move {
            order.borrow_mut().push(n);
            // Later timers for earlier tasks: the second round is the other way round.
            inner.sleep(Duration::from_secs(100 - n)).await;
            order.borrow_mut().push(n + 100);
        }));
    }
    executor.block_on(local.sleep(Duration::from_secs(1000)));
    let expected: Vec<u64> = (0..10).chain((100..110).rev()).collect();
    assert_eq!(*order.borrow(), expected);
    assert_eq!(local.now().since_boot(), Duration::from_secs(1000));
}

#[test]
fn dropping_a_task_detaches_and_aborting_ends_it() {
    let executor = executor();
    let local = executor.local();
    let (ran, ended) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let (inner, flag) = (local.clone(), Rc::clone(&ran));
    drop(local.spawn(async move {
        inner.sleep(Duration::from_secs(1)).await;
        flag.set(true);
    }));
    let flag = Flag(Rc::clone(&ended));
    let endless = local.spawn(async move {
        std::future::pending::<()>().await;
        drop(flag);
    });
    executor.block_on(local.sleep(Duration::from_secs(2)));
    assert!(ran.get() && !ended.get() && !endless.is_finished());
    endless.abort();
    executor.block_on(local.sleep(Duration::from_secs(1)));
    assert!(ended.get());
}

#[test]
fn dropping_the_executor_drops_its_tasks() {
    let executor = executor();
    let local = executor.local();
    let dropped = Rc::new(Cell::new(false));
    let flag = Flag(Rc::clone(&dropped));
    let inner = local.clone();
    let task = local.spawn(async move {
        let waits_for_another =
            inner.spawn(async move { std::future::pending::<Flag>().await }).await;
        drop((flag, waits_for_another));
    });
    executor.block_on(local.sleep(Duration::from_secs(1)));
    drop(executor);
    assert!(dropped.get());
    drop(task);
    let remote = local.remote();
    let (tell, told) = std::sync::mpsc::channel::<()>();
    remote.spawn(move |_| Box::pin(async move { drop(tell) }));
    assert!(told.recv().is_err(), "a start that comes too late is dropped");
}

#[test]
fn halting_stops_everything_at_once() {
    let executor = executor();
    let local = executor.local();
    let count = Rc::new(Cell::new(0));
    for _ in 0..10 {
        let (count, local) = (Rc::clone(&count), local.clone());
        drop(local.clone().spawn(async move {
            count.set(count.get() + 1);
            if count.get() == 3 {
                local.halt();
            }
        }));
    }
    assert!(executor.run_until_halt(local.sleep(Duration::from_secs(1))).is_none());
    assert_eq!(count.get(), 3);
}

#[test]
fn a_result_comes_back() {
    let executor = executor();
    let local = executor.local();
    let twice = local.spawn({
        let local = local.clone();
        async move { 2 * local.spawn(async { 21 }).await }
    });
    assert_eq!(executor.block_on(twice), 42);
}

#[test]
fn yielding_lets_the_others_run_first() {
    let (executor, order) = (executor(), Rc::new(RefCell::new(Vec::new())));
    let local = executor.local();
    let tasks = ["a", "b"].map(|name| {
        let (order, inner) = (Rc::clone(&order), local.clone());
        local.spawn(async move {
            for _ in 0..2 {
                order.borrow_mut().push(name);
                inner.yield_now().await;
            }
        })
    });
    executor.block_on(futures_util::future::join_all(tasks));
    assert_eq!(*order.borrow(), ["a", "b", "a", "b"]);
}

#[test]
fn a_dropped_sleep_wakes_nobody() {
    let executor = executor();
    let local = executor.local();
    executor.block_on(async {
        let long = local.sleep(Duration::from_secs(1_000_000));
        let short = local.sleep(Duration::from_secs(1));
        futures_util::future::select(long, short).await;
        local.sleep(Duration::from_secs(1)).await;
    });
    assert_eq!(local.now().since_boot(), Duration::from_secs(2));
}
