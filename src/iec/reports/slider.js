for (const input of document.querySelectorAll(".stack input")) {
  const show = () => {
    input.parentElement.style.setProperty("--at", input.value + "%");
    input.setAttribute("aria-valuetext", input.value + " % " + input.dataset.before);
  };
  input.addEventListener("input", show);
  show();
}
