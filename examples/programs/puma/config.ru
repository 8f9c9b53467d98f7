# A Rack application that says which generation answers.
run lambda { |env|
  [200, { "content-type" => "text/plain" }, ["generation #{ENV.fetch('GENERATION')}\n"]]
}
