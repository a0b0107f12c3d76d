document.body.textContent = "The page is being built.";
