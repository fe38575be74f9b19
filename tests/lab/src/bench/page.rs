//! The report: one page with tables and plots, which needs nothing but itself.

use plotly::common::{ErrorData, ErrorType, Title};
use plotly::layout::{Axis, AxisType, BarMode};
use plotly::{Bar, Layout, Plot};

use super::results::{Cell, Results};
use super::series::{Median, Sample};
use super::stage::CONTENDERS;

const STYLE: &str = "body { font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em } \
    table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1em 0 2em } \
    th, td { padding: .15em .8em; text-align: right; border-bottom: 1px solid #ddd } \
    th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left } \
    tr.own { background: #eef6ee }";

/// The whole page.
pub(super) fn page(results: &Results) -> String {
    let scenes: String = results.scenes().into_iter().map(|guests| scene(results, guests)).collect();
    let scaling = scaling(results).to_inline_html(Some("scaling"));
    let (head, rows) = results.hypercalls();
    let sizes = results.sizes().into_iter().map(|(what, figure)| vec![what, figure]).collect::<Vec<_>>();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>platter beside what it replaces</title>\n\
         <style>{STYLE}</style>\n{}</head><body>\n\
         <h1>platter beside what it replaces</h1>\n\
         <p>The same guests and the same fio jobs, on one emulated Xen machine, in rounds of {} seconds that take turns. Guests \
         share one processor, and all who serve, dom0 among them, the other. Every figure is the median of its rounds; in brackets, and as \
         bars, are the borders of the middle half of them. Ratios are taken round by round. Only ratios mean anything: the machine is emulated \
         instruction by instruction. CPU is that of the domain that serves, as Xen counts it, for one request, less what it uses without any. \
         The Linux driver domain has its controller's interrupts by INTx: its pcifront cannot enable MSI-X a second time, as its NVMe driver \
         does. The ceiling is a platter that answers at once, without its disk.</p>\n<p>{}</p>\n\
         {scenes}<h2>How it scales</h2>\n{scaling}<h2>Hypercalls</h2>\n{}<h2>Size and start</h2>\n{}</body></html>\n",
        Plot::offline_js_sources(),
        results.seconds,
        escape(&results.versions.join(", ")),
        table(&head, &rows),
        table(&["", ""], &sizes),
    )
}

fn scene(results: &Results, guests: usize) -> String {
    let title = if guests == 1 { "One guest".to_owned() } else { format!("{guests} guests at once") };
    let plot = |name: &str, title: &str, of: fn(&Sample) -> f64| {
        bars(results, guests, title, of).to_inline_html(Some(&format!("{name}-{guests}")))
    };
    let plots = plot("iops", "requests a second", |one| one.iops)
        + &plot("latency", "milliseconds a request takes", |one| one.mean_ms)
        + &plot("cpu", "microseconds of CPU a request", |one| one.cpu_us);
    let (head, rows) = results.speed(guests);
    format!("<h2>{title}</h2>\n{plots}{}", table(&head, &rows))
}

/// The first job that has depth, by so many guests as there were at once: a group of bars a contender.
fn scaling(results: &Results) -> Plot {
    let job = results.cells.iter().map(|cell| cell.job).find(|job| !job.ends_with("-1")).unwrap_or_default();
    let mut plot = Plot::new();
    for guests in results.scenes() {
        let cells = results.cells.iter().filter(|cell| cell.guests == guests && cell.job == job);
        let (names, heights) =
            cells.map(|cell| (cell.contender.name(), cell.series.median(|one| one.iops).median)).unzip();
        plot.add_trace(Bar::<String, f64>::new(names, heights).name(format!("{guests} at once")));
    }
    let axis = Axis::new().title(Title::with_text(format!("requests a second, {job}")));
    plot.set_layout(Layout::new().bar_mode(BarMode::Group).y_axis(axis).height(420));
    plot
}

/// A group of bars a job, one a contender, on a logarithmic axis.
fn bars(results: &Results, guests: usize, title: &str, of: fn(&Sample) -> f64) -> Plot {
    let mut plot = Plot::new();
    for contender in CONTENDERS {
        let cells: Vec<&Cell> = results
            .cells
            .iter()
            .filter(|cell| cell.guests == guests && cell.contender == *contender)
            .collect();
        if cells.is_empty() {
            continue;
        }
        let medians: Vec<Median> = cells.iter().map(|cell| cell.series.median(of)).collect();
        let over = medians.iter().map(|one| one.high - one.median).collect();
        let under = medians.iter().map(|one| one.median - one.low).collect();
        let jobs = cells.iter().map(|cell| cell.job).collect();
        let errors = ErrorData::new(ErrorType::Data).array(over).array_minus(under);
        let heights = medians.iter().map(|one| one.median).collect();
        plot.add_trace(Bar::new(jobs, heights).name(contender.name()).error_y(errors));
    }
    let axis = Axis::new().type_(AxisType::Log).title(Title::with_text(title));
    plot.set_layout(Layout::new().bar_mode(BarMode::Group).y_axis(axis).height(420));
    plot
}

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String], tag: &str, class: &str| {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr{class}>{cells}</tr>\n")
    };
    let head: Vec<String> = head.iter().map(|title| (*title).to_owned()).collect();
    let is_own = |row: &[String]| row.get(1).is_some_and(|name| name.starts_with("platter"));
    let body: String =
        rows.iter().map(|row| line(row, "td", if is_own(row) { " class=\"own\"" } else { "" })).collect();
    format!("<table>\n{}{body}</table>\n", line(&head, "th", ""))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
