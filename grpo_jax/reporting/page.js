// The page: its data is JSON in a script element that does not run.

const data = JSON.parse(document.getElementById('data').textContent);
const curvesRoot = document.getElementById('curves-view');
const rolloutsRoot = document.getElementById('rollouts-view');
if (curvesRoot) new Curves(curvesRoot, data.stages);
if (rolloutsRoot) new Rollouts(rolloutsRoot, data);
