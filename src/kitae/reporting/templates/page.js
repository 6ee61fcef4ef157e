(function () {
  "use strict";
  document.querySelectorAll("table.sort").forEach(function (table) {
    var heads = table.querySelectorAll("thead th"), body = table.tBodies[0];
    if (!body || body.rows.length < 3) return;
    heads.forEach(function (head, column) {
      var button = document.createElement("button");
      button.type = "button";
      while (head.firstChild) button.appendChild(head.firstChild);
      head.appendChild(button);
      button.addEventListener("click", function () {
        var up = head.getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1;
        heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        function key(row) {
          var cell = row.cells[column], text = cell.dataset.v || cell.textContent.trim();
          var number = parseFloat(text.replace(/,/g, "").replace(/\u2212/g, "-"));
          return isNaN(number) ? text : number;
        }
        Array.from(body.rows).map(function (row) { return [key(row), row]; }).sort(function (a, b) {
          if (typeof a[0] !== typeof b[0]) return typeof a[0] === "number" ? -1 : 1;
          return sign * (typeof a[0] === "number" ? a[0] - b[0] : a[0].localeCompare(b[0]));
        }).forEach(function (pair) { body.appendChild(pair[1]); });
      });
    });
  });
  document.querySelectorAll(".command").forEach(function (box) {
    var code = box.querySelector("code"), button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.setAttribute("aria-label", "Copy: " + code.textContent);
    button.addEventListener("click", function () {
      var range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      var done = function () { button.textContent = "Copied"; setTimeout(function () { button.textContent = "Copy"; }, 1500); };
      if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(done, function () {});
      else if (document.execCommand("copy")) done();
    });
    box.appendChild(button);
  });
  function mark() {
    document.querySelectorAll(".scroll").forEach(function (box) {
      box.classList.toggle("wider", box.scrollWidth > box.clientWidth);
    });
  }
  mark();
  addEventListener("resize", mark);
  document.addEventListener("toggle", mark, true);
  var opened = [];
  addEventListener("beforeprint", function () {
    opened = Array.from(document.querySelectorAll("details:not([open])"));
    opened.forEach(function (one) { one.open = true; });
  });
  addEventListener("afterprint", function () { opened.forEach(function (one) { one.open = false; }); });
})();
