// What the pages do better with a script; without one, everything still works by links and forms.
document.documentElement.classList.add("scripted");

const time = document.querySelector(".time");
const range = time.querySelector("input[type=range]");
range.addEventListener("input", () => { time.querySelector("output").textContent = range.value; });
range.addEventListener("change", () => time.requestSubmit());

const wait = document.querySelector("[data-progress]");
if (wait) {
  const began = Date.now();
  const look = async () => {
    const state = await (await fetch(wait.dataset.progress)).json();
    if (state.finished) return location.reload();
    wait.querySelector("progress").value = state.done;
    if (state.done === 1) wait.querySelector("p").firstChild.textContent = "Reading the passages … ";
    wait.querySelector(".seconds").textContent = `${Math.round((Date.now() - began) / 1000)} s`;
    setTimeout(look, 300);
  };
  look().catch(() => { wait.querySelector("p").textContent = "The explorer does not answer: is it still running?"; });
}

const tip = document.getElementById("tip");
if (tip) {
  document.querySelector(".map > svg").addEventListener("mouseover", (event) => {
    tip.textContent = event.target.tagName === "circle" ? event.target.querySelector("title").textContent : "";
  });
}
