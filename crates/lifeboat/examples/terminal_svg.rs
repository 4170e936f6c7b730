//! Draws text as a terminal shows it, as SVG: the picture of the demo in the documentation.
//!
//! Standard input is the text, standard output the picture, the arguments the command that
//! stands above it:
//!
//! ```text
//! cargo run --release -- demo > demo.txt
//! cargo run --example terminal_svg -- cargo run --release -- demo < demo.txt > docs/images/demo.svg
//! ```

use std::io::{self, Read as _, Write as _};

const CHARACTER: f64 = 7.82;
const LINE: usize = 18;
const MARGIN: usize = 20;
const TITLE: usize = 30;

fn main() -> io::Result<()> {
    let command: Vec<String> = std::env::args().skip(1).collect();
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let picture = draw(&command.join(" "), &text);
    io::stdout().write_all(picture.as_bytes())
}

fn draw(command: &str, text: &str) -> String {
    let mut lines = vec![format!("$ {command}")];
    lines.extend(text.lines().map(str::to_owned));
    let columns = lines.iter().map(|line| line.chars().count()).max();
    let width = (columns.unwrap_or(0) as f64 * CHARACTER).ceil() as usize + 2 * MARGIN;
    let height = TITLE + LINE * lines.len() + 2 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"The output of {}\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#16202a\"/>\n",
        escape(command)
    );
    for (at, color) in ["#e8695f", "#e5b84c", "#63b96b"].iter().enumerate() {
        let x = MARGIN + 20 * at;
        svg.push_str(&format!(
            "<circle cx=\"{x}\" cy=\"{MARGIN}\" r=\"6\" fill=\"{color}\"/>\n"
        ));
    }
    svg.push_str(
        "<g font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" \
         font-size=\"13\" fill=\"#d5dde5\">\n",
    );
    for (at, line) in lines
        .iter()
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
    {
        let y = TITLE + MARGIN + LINE * (at + 1) - 4;
        // Renderers disagree on spaces at the beginning of a text.
        let shown = line.trim_start();
        let indent = (line.chars().count() - shown.chars().count()) as f64 * CHARACTER;
        let x = MARGIN as f64 + indent;
        let length = shown.chars().count() as f64 * CHARACTER;
        let color = match line.as_str() {
            line if line.starts_with('$') => " fill=\"#8fb8de\"",
            line if !line.starts_with(' ') => " fill=\"#ffffff\"",
            _ => "",
        };
        svg.push_str(&format!(
            "<text x=\"{x:.1}\" y=\"{y}\" textLength=\"{length:.1}\"{color}>{}</text>\n",
            // Ordinary spaces would be drawn as one.
            escape(shown).replace(' ', "\u{a0}")
        ));
    }
    svg.push_str("</g>\n</svg>\n");
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
